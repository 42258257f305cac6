"""The second adapter: images and torchvision's models as groups that codistil.

    python -m fairseq_codistill.vision --data IMAGEFOLDER --arch resnet50 --epochs 45 ...

Imports no fairseq.  The paper's ImageNet experiments (section 3) are recipes for it.
"""
